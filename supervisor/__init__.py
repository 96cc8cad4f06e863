"""The trusted side: deciding (`core/`) and doing."""
