"""What is learned from: streams, pools of examples, sources, and the files that they come from."""
