"""A bundle or a checkpoint and a few labelled images in; a prompt table or a checkpoint that knows them out."""
