"""The trusted side: an OpenAI-compatible endpoint in front of a node that sees ids only.

In the order in which a request passes through:

* `guards`: who may ask, and the shape of every error (`openai_errors`).
* `openai_requests`: a body becomes frozen values, or a refusal that names the field.
* `text`: chat templates and the tokenizer, on this machine.
* `ask`: what is wanted of the node, in plain ids.
* `node_client`, `node_address`: plain ids become cipher ids; HTTPS with a pinned certificate.
* `node_answers`: everything the node says, checked, back in plain ids.
* `answers`, `detokenise`, `stops`: ids become text, incrementally.
* `openai_responses`: text becomes OpenAI's objects and chunks.
* `proxy`: all of it as handlers; `service` runs them from start to signal.
"""
