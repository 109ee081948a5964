"""Measurements that put our parts beside their rivals, in one process and one run."""
