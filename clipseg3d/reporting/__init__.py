"""Pictures and reports of a segmented case, for people to look at."""
