"""The core: learners, the step of a sum of parts, and the loop that trains a stack of lanes."""
