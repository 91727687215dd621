// Package config reads the environment.
package config

import "os"

// Listen is the address to listen at.
func Listen() string {
	if a := os.Getenv("GREETER_LISTEN"); a != "" {
		return a
	}
	return "localhost:8080"
}
