"""Files in and out: photos, depth maps, stacks, run records, points in space, pictures. No torch import."""
