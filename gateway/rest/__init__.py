"""Routes over HTTP: what one is, how it is asked and answered, and the document that lists them."""
