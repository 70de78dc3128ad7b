"""The controller: fingerprint registry, membership, sandbox directory, base demarcation.

servicer (protobuf) → handlers (functions of request, state and time) → registry store. Everything it holds is
announced again by the agents after a restart, or kept in its store.
"""
