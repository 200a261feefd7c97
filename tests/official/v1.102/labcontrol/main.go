// Labcontrol runs the official module's in-memory test control server, a relay and STUN on one
// address, for the lab's check that `tsd node` joins a server that tsd did not write.
package main

import (
	"context"
	"crypto/tls"
	"flag"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"

	"tailscale.com/derp/derpserver"
	"tailscale.com/net/stunserver"
	"tailscale.com/tailcfg"
	"tailscale.com/tstest/integration/testcontrol"
	"tailscale.com/types/key"
)

func main() {
	addr := flag.String("addr", "127.0.0.1", "address to listen on")
	authKey := flag.String("auth-key", "", "key that every node must present")
	domain := flag.String("domain", "lab.test", "MagicDNS domain")
	flag.Parse()
	logger := log.New(os.Stdout, "", log.Ltime)

	relay := derpserver.New(key.NewNode(), logger.Printf)
	relayServer := httptest.NewUnstartedServer(derpserver.Handler(relay))
	relayServer.Listener.Close()
	listener, err := net.Listen("tcp", net.JoinHostPort(*addr, "443"))
	if err != nil {
		logger.Fatal(err)
	}
	relayServer.Listener = listener
	relayServer.Config.TLSNextProto = map[string]func(*http.Server, *tls.Conn, http.Handler){}
	relayServer.StartTLS()

	stun := stunserver.New(context.Background())
	if err := stun.Listen(netip.AddrPortFrom(netip.MustParseAddr(*addr), 3478).String()); err != nil {
		logger.Fatal(err)
	}
	go stun.Serve()

	node := &tailcfg.DERPNode{
		Name: "1a", RegionID: 1, HostName: *addr, IPv4: *addr, IPv6: "none",
		DERPPort: 443, STUNPort: 3478, InsecureForTests: true,
	}
	region := &tailcfg.DERPRegion{RegionID: 1, RegionCode: "lab", RegionName: "Lab", Nodes: []*tailcfg.DERPNode{node}}
	control := &testcontrol.Server{
		Logf:            logger.Printf,
		DERPMap:         &tailcfg.DERPMap{Regions: map[int]*tailcfg.DERPRegion{1: region}},
		RequireAuthKey:  *authKey,
		MagicDNSDomain:  *domain,
		AllOnline:       true,
		ExplicitBaseURL: "http://" + net.JoinHostPort(*addr, "8080"),
		DNSConfig:       &tailcfg.DNSConfig{Proxied: true, Domains: []string{*domain}},
	}
	logger.Printf("ready")
	logger.Fatal(http.ListenAndServe(net.JoinHostPort(*addr, "8080"), control))
}
