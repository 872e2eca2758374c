"""The main job: a provably equivalent rewrite of a whole source tree, done by a swarm.

``trio-swarm run codemod`` turns each ``except:`` of a tree into ``except BaseException:``.
Pool workers scan files and propose patches (:mod:`.worker`, :mod:`.rule`), a child actor proves
each patch (:mod:`.child`, :mod:`.proof`), an operator gates each file, and a pod whose grant is
the output directory writes (:mod:`.pod`). :mod:`.serial` does the same work in one process and
one thread; :mod:`.verify` compares the two.

**Outcomes.** Every file of the tree settles exactly once, as one of

- ``patched``: it had bare handlers; the rewritten file is written below ``--out`` under its own path;
- ``unchanged``: nothing to rewrite;
- ``unparseable``: this interpreter does not parse it, or it cannot be kept byte for byte;
- ``skipped``: the operator said no, or the rewrite would not be equivalent there;
- ``unreadable``: it could not be read.

**Output.** Only patched files are written. Unchanged, unparseable, skipped and unreadable files
are not copied, so ``--out`` holds exactly the files to copy over the tree.

Nothing is imported here, so that a worker process starts with the modules that it needs alone.
"""
