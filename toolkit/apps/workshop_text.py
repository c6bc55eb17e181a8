"""The page that lies beside the workshop's bundle."""

README = """# Workshop: what has my network learnt?

Everything in this folder works without a network connection. The toolkit itself has to be installed (`make setup` in its repository).

| folder | what |
|---|---|
| `notebooks/` | `70_workshop.ipynb` is yours; `70_workshop_solutions.ipynb` is the instructor's, with timings and solutions |
| `data/` | the embedded task: generated hearts of four sites. No person was scanned |
| `networks/` | small networks of all methods, after site A and after site B (`.safetensors`) |
| `features/` | features of site A's test patients, of each of these networks |
| `scores.csv` | Dice of each on the test split of both sites |
| `manifest.json` | settings, versions, and size and sha256 of every file |

Start JupyterLab in `notebooks/` and open `70_workshop.ipynb`. It finds the bundle one folder up; from elsewhere set the environment
variable `WORKSHOP_BUNDLE` to this folder.

The networks are small and were trained for minutes with one seed. They show what the tools measure; no statement about which
method is better can rest on them. SegReg's loss is our inference from the public parts of the paper (its own loss and code are not public).
"""
