"""One HTTP suite for every runtime. It is a package because some of its fixtures have package scope."""
