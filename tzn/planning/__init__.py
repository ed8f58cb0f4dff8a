"""A configuration from the data alone: a fingerprint of the folder, rules that read it, and a timing of this machine."""

from tzn.planning.fingerprint import Fingerprint, read_fingerprint
from tzn.planning.plan import Choice, Plan, make_plan
from tzn.planning.write import plan_text

__all__ = ["Choice", "Fingerprint", "Plan", "make_plan", "plan_text", "read_fingerprint"]
