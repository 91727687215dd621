// tool says that it is there, with little that has to be compiled for another machine.
package main

func main() { println("tool") }
