"""Attacks (`suite/`, shipped as `casemate.hostile`), and the tests that run them."""
