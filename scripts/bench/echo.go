// A peer of the benchmark: net/http as the original tproxy-pod used it. It logs and echoes each request, as
// fmt prints the http.Request. The benchmark installs its rules.
package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"syscall"
)

func transparent(_, _ string, connection syscall.RawConn) error {
	var failure error
	err := connection.Control(func(descriptor uintptr) {
		failure = syscall.SetsockoptInt(int(descriptor), syscall.SOL_IP, syscall.IP_TRANSPARENT, 1)
	})
	if err != nil {
		return err
	}
	return failure
}

func echo(answer http.ResponseWriter, request *http.Request) {
	log.Printf("Received request to %s : %+v", request.RequestURI, request)
	fmt.Fprintf(answer, "Request received from %s destination %s : %v\n",
		request.Host, request.RequestURI, request)
}

func main() {
	config := net.ListenConfig{Control: transparent}
	listener, err := config.Listen(context.Background(), "tcp", "127.0.0.1:1")
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/", echo)
	log.Fatal(http.Serve(listener, mux))
}
