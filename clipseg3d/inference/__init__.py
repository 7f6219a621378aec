"""From a trained network and a case to labels in the case's own grid."""
