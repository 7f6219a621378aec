"""Everything that touches CLIP or text; the only place that imports transformers."""
