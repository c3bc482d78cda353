"""The blinded review of answers by raters: cases, the web page for raters, ratings, agreement."""
