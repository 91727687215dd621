// Package registry speaks the OCI distribution protocol: it resolves references to manifests, streams verified blobs,
// pushes images and keeps the credentials of docker's config.json. It also reads images that lie in OCI layouts and
// image archives, so that both kinds of origin look the same to its callers.
//
// It owns every rule about what may be sent to whom. Credentials go to the registry they were stored for and to the
// token server that registry names, if that server is reached by https, is the registry's own host, or was configured
// by the user; nobody else ever sees them. A redirect to another origin loses the Authorization header. Addresses that
// a registry (rather than the user) chose are checked after name resolution, when dialling: a public registry cannot
// send us to a private or link-local address. Bodies that are held in memory are limited, and no byte of a manifest,
// config or blob is handed out as good before its digest was compared.
//
// The package keeps no files, knows no platform other than the one asked for, prints nothing and reads no
// environment variable itself (the proxy variables and SSL_CERT_FILE are the standard library's).
//
// The token handshake is written here rather than taken from go-containerregistry's transport package because that one
// pings before every repository, picks plain http for private address ranges by itself, refuses token servers on the
// registry's own private address, and cannot rewind a request body; its error decoding is used as it is.
package registry
