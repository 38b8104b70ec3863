"""The harness' own agents would be here; ours takes this module's place, so it must never be imported."""

raise RuntimeError("the harness' own agent module was imported")
