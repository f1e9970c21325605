"""The red team: what every attacker learns of a model and its traffic, measured.

Covered: the attacks of `methods`, at the levels of `levels`, on encrypted checkpoints and on the
published transforms of others (`rivals`).
Not covered: attacks that nobody has thought of yet. A low number means that these attacks failed.

In dependency order:

* `levels`: who attacks, and what they hold.
* `weights`: a checkpoint as an attacker reads it.
* `holdings`: what one attacker has; what an attack finds.
* `attack`: what an attack is.
* `matching`: rows of one table that look like rows of another.
* `methods`: the attacks, one file each.
* `rivals`: published transforms, from their formulas.
"""
