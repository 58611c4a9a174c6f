"""One name map per publisher; each module has VARIANTS, {model: Variant}."""
