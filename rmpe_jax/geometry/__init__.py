"""Boxes, 2x3 affine maps between named frames, and bilinear sampling along them."""
