"""What made the starter model that ships: ``train.py`` reads a recipe and writes its checkpoint."""
