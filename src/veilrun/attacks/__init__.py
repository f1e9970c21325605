"""The red team: what every attacker learns of a model and its traffic, measured.

Covered: the attacks of `methods`, at the levels of `levels`, on encrypted checkpoints and on the
published transforms of others (`rivals`).
Not covered: attacks that nobody has thought of yet. A low number means that these attacks failed.

In dependency order:

* `levels`, `weights`, `encoders`: who attacks, and what they hold; a checkpoint as an attacker
  reads it.
* `holdings`, `attack`: what one attacker has and finds; what an attack is.
* `matching`, `ridge`, `counts`, `alignment`: rows that look like other rows; linear maps learnt
  from matches; counts of tokens; graphs laid on one another.
* `eigenvectors`, `inner_key`: what a key of any kind leaves in place.
* `methods`, `catalogue`: the attacks, one file each; all of them in order.
* `rivals`: published transforms, from their formulas.
* `runs`, `texts`: models that run; secret texts, and those that attackers have.
* `subject`, `middle`, `building`: an encrypted model and the truth about it, from a folder and
  a key.
* `metrics`, `meter`: how much was recovered; what it took.
* `audit`, `context`, `results`: all attacks on one subject, resumable.
* `card`, `card_*`, `verdict`, `wording`: what came out, for programs and for people.
"""
