// greeter greets.
package main

import (
	"flag"
	"fmt"
	"os"

	"example.com/greeter/internal/config"
	"example.com/words"
)

var version, commit string

func main() {
	name := flag.String("name", "nobody", "whom to greet")
	check := flag.Bool("check", false, "only check the installation")
	flag.Parse()
	fmt.Printf("greeter %s (%s) uid %d listens at %s\n", version, commit, os.Getuid(), config.Listen())
	if *check {
		if _, err := os.Stat("/etc/ssl/certs/ca-certificates.crt"); err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		return
	}
	fmt.Println(words.Hello(*name))
}
