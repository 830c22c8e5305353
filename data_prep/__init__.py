"""Data preparation: readers of the two layouts, MiniCity, class sets, sharded HDF5. No torch."""
