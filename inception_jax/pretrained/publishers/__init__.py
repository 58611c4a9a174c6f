"""One name map per publisher; each module has FORMS, {model: Form}."""
