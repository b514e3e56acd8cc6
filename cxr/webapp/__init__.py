"""The reader's page: a service on loopback that answers what a model says of one film, and one page that asks it.

    limits     what is let in: how many requests, how many bytes, for how long
    guard      who may ask: no other site's page, no name that was bent to this machine
    films      bytes of a stranger to a film, in a few threads
    engine     one thread that owns the model and answers what waits, a batch at a time
    watch      the registry, looked at every few seconds: a new champion takes over between two batches
    layers     pictures for the page: the film, and where the model looked
    card       what a version says of itself
    service    the routes
    server     the whole, until Ctrl-C

A film's name never comes here: a film is the body of a request, and nothing of it is written to a file or a log.
"""
