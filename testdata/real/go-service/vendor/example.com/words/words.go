// Package words has words.
package words

// Hello greets somebody.
func Hello(name string) string { return "hello, " + name }
