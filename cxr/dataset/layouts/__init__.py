"""How raw sets are laid out on disk: files, labels and patients of each layout."""
