"""The page that lies beside the workshop's notebooks."""

README = """# Workshop: what has my network learnt?

Everything works without a network connection: the toolkit has to be installed (`make setup` in its repository, beforehand), and the data (generated hearts and glands; no person was scanned) and the
trained networks come with it.

Start JupyterLab in `notebooks/` and open `70_workshop.ipynb`. `70_workshop_solutions.ipynb` is the instructor's, with timings, solutions and expected values; the other notebooks are for afterwards.

SegReg's loss is our inference from the public parts of its paper (its own loss and code are not public).
"""
