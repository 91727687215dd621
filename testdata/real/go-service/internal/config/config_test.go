package config

import "testing"

func TestListen(t *testing.T) {
	t.Setenv("GREETER_LISTEN", "")
	if Listen() != "localhost:8080" {
		t.Fatal(Listen())
	}
}
