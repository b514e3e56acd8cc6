"""The web app: a REST service on loopback that classifies one image a request, and a single page that calls it.

    connections     how many of them one client may hold
    limits          how many requests are accepted at once, how many bytes, and for how long
    guard           rejects requests of other sites' pages and of foreign host names (DNS rebinding)
    decode_pool     image bytes to the model's input, in a few processes
    batcher         the thread that owns the model and answers queued images in batches
    champion_watch  polls the registry; a new champion takes over between two batches
    renditions      what is made of an image: the model's input, pictures, pixels for the viewer, the report
    model_info      the model card of a version
    metrics         counters for Prometheus
    access_log      counts and times every request
    schemas         the responses, as in the OpenAPI description
    service         the routes
    server          the process: listens until Ctrl-C

File names never reach the service: the image is the body of the request, and nothing of it is written to a file or log.
"""
