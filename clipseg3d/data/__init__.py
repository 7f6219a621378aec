"""BraTS releases, cases, the preprocessed cache and the DataModules; knows no model."""
