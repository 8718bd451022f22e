"""``s2d bench report``: the page and the README's table, from the files of results."""
