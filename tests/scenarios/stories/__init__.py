"""Each of the four ways of working, told from the first sign-up to the last mail, over HTTP."""
