"""The blinded review by raters: cases, the raters' pages, agreement."""
