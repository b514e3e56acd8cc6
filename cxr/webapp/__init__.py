"""The web app: a service on loopback that answers what a model says of one image, and one page that asks it.

    limits     what is let in: how many requests, how many bytes, for how long
    guard      who may ask: no other site's page, no name that was bent to this machine
    images      bytes of a stranger to an image, in a few threads
    engine     one thread that owns the model and answers what waits, a batch at a time
    watch      the registry, looked at every few seconds: a new champion takes over between two batches
    layers     pictures for the page: the image, and where the model looked
    card       what a version says of itself
    service    the routes
    server     the whole, until Ctrl-C

An image's name never comes here: an image is the body of a request, and nothing of it is written to a file or a log.
"""
