// Package explain says why a step ran although something like it ran before. It owns three things: the journal, which
// remembers for each context directory which keys the instructions of its Dockerfiles had; the search for the earlier run
// that a step is best compared with; and the words for what differs between the texts of two keys or between two lists
// of files.
//
// It reads nothing but its arguments, knows nothing of registries, steps or stores, and decides nothing: whether a step
// runs was settled before anybody asks here. What it is wrong about is a sentence, never a result.
package explain
