// Package parser turns the bytes of a Dockerfile into stages of typed instructions with their places in the source.
//
// It owns everything that can be known from the file alone: parser directives, syntax errors, lint warnings, and how
// each of them is shown to the person who wrote the file. Grammar, flags and heredocs are those of BuildKit's own
// packages, which it wraps and never re-implements, so that every message and every corner case is what users know.
//
// It refuses to know about images, contexts, variables' values or the host: that is package dag's and the driver's.
package parser
