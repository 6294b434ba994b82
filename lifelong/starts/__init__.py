"""Where learning begins: how a start is learned, kept, installed and evaluated."""
