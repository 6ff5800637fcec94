"""One HTTP suite for every runtime. A package, so that fixtures can last as long as it does."""
