"""Learner machines: nodes that join a federation over Flower's SuperLink, their keys, their data and the way to them.

Data never leaves a node; a node's right to take part comes from `nodes/<name>.yaml` in the GitOps repo, never from what the
node says of itself.
"""

SUPERLINK = "superlink"
"""The kind of service that a SuperLink of ours is; here, so that whoever only looks for it does not take in Flower's protocol."""
