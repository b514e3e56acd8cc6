"""No domain: errors, parameters, command line, files, locks, downloads, archives, S3, classes, notices."""
