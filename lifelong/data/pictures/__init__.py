"""Collections of pictures on disk: how they lie there, how they are read, in bounded processes."""
