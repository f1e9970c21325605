"""The three parties as processes: what each keeps, whom it calls, and in which order.

* `links`: calling one another, and asking for an answer.
* `outbox`: what the dealer keeps.  `dealer`: P0, which serves the other two.
* `online`: one inference, the same for both parties.
* `assistant`: P2, which serves the client.  `client`: P1.
"""
