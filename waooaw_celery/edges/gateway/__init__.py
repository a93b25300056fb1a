"""The messaging gateway of the edges: calls from outside become messages, requests and workflows.

*Enterprise Integration Patterns* calls this a Messaging Gateway. The protocols only translate to it and from it.
"""
