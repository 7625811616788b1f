"""A static chain as a standard checkpoint, which loads without this package."""
