"""Small servers for the asleep benchmark, as somebody would write them: GET / says "ok", GET /state the process and a
digest over all its items (asleep_state.py)."""

PYTHON_ITEMS = """
import hashlib, os

def make():
    count = int(os.environ["ITEMS"])
    return [f"{i}:" + f"{i * 2654435761 % 4294967296:08x}" * 8 for i in range(count)]

def state(items):
    digest = hashlib.sha256()
    for item in items:
        digest.update(item.encode())
    return f"{os.getpid()} {digest.hexdigest()}"
"""

WSGI = """
import items

ITEMS = items.make()

def app(environ, start_response):
    body = items.state(ITEMS) if environ["PATH_INFO"] == "/state" else "ok"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body.encode()]
"""

FASTAPI = """
import fastapi, fastapi.responses
import items

ITEMS = items.make()
app = fastapi.FastAPI()

@app.get("/", response_class=fastapi.responses.PlainTextResponse)
async def ok():
    return "ok"

@app.get("/state", response_class=fastapi.responses.PlainTextResponse)
async def state():
    return items.state(ITEMS)
"""

POOL = """
import http.server, multiprocessing, sys
import items

def load():
    global ITEMS
    ITEMS = items.make()

def ok():
    return "ok"

def state():
    return items.state(ITEMS)

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = POOL.apply(state if self.path == "/state" else ok).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

if __name__ == "__main__":
    POOL = multiprocessing.Pool(2, load)
    http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""

NODE = """
const http = require('http'), crypto = require('crypto');
const items = [];
for (let i = 0; i < Number(process.env.ITEMS); i++)
  items.push(i + ':' + ((i * 2654435761) % 4294967296).toString(16).padStart(8, '0').repeat(8));
function state() {
  const digest = crypto.createHash('sha256');
  for (const item of items) digest.update(item);
  return process.pid + ' ' + digest.digest('hex');
}
http.createServer((request, response) => response.end(request.url === '/state' ? state() : 'ok'))
  .listen(Number(process.argv[2]), '127.0.0.1');
"""

JAVA = """
import com.sun.net.httpserver.HttpServer;
import java.net.InetSocketAddress;
import java.security.MessageDigest;
import java.util.ArrayList;

public class Server {
    static final ArrayList<String> items = new ArrayList<>();

    static String state() throws Exception {
        MessageDigest digest = MessageDigest.getInstance("SHA-256");
        for (String item : items) digest.update(item.getBytes());
        StringBuilder text = new StringBuilder(ProcessHandle.current().pid() + " ");
        for (byte b : digest.digest()) text.append(String.format("%02x", b));
        return text.toString();
    }

    public static void main(String[] arguments) throws Exception {
        int count = Integer.parseInt(System.getenv("ITEMS"));
        for (long i = 0; i < count; i++)
            items.add(i + ":" + String.format("%08x", i * 2654435761L % 4294967296L).repeat(8));
        HttpServer server = HttpServer.create(new InetSocketAddress("127.0.0.1", Integer.parseInt(arguments[0])), 0);
        server.createContext("/", exchange -> {
            byte[] body;
            try {
                body = (exchange.getRequestURI().getPath().equals("/state") ? state() : "ok").getBytes();
            } catch (Exception error) {
                body = error.toString().getBytes();
            }
            exchange.sendResponseHeaders(200, body.length);
            exchange.getResponseBody().write(body);
            exchange.close();
        });
        server.start();
    }
}
"""

GO = """
package main

import (
	"crypto/sha256"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
)

func main() {
	count, _ := strconv.Atoi(os.Getenv("ITEMS"))
	items := make([]string, count)
	for i := range items {
		items[i] = fmt.Sprintf("%d:%s", i, strings.Repeat(fmt.Sprintf("%08x", uint64(i)*2654435761%4294967296), 8))
	}
	http.HandleFunc("/", func(answer http.ResponseWriter, request *http.Request) { fmt.Fprint(answer, "ok") })
	http.HandleFunc("/state", func(answer http.ResponseWriter, request *http.Request) {
		digest := sha256.New()
		for _, item := range items {
			digest.Write([]byte(item))
		}
		fmt.Fprintf(answer, "%d %x", os.Getpid(), digest.Sum(nil))
	})
	panic(http.ListenAndServe("127.0.0.1:"+os.Args[1], nil))
}
"""

NGINX = """
daemon off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
worker_processes 2;
events {{ worker_connections 128; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body;
  proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi;
  scgi_temp_path {folder}/scgi;
  server {{ listen 127.0.0.1:{port}; root {folder}/files; }}
}}
"""

FUNCTIONS_FRAMEWORK = """
import functions_framework
import items

ITEMS = items.make()

@functions_framework.http
def answer(request):
    return items.state(ITEMS) if request.path == "/state" else "ok"
"""

FASTAPI_WEBSOCKET = """
@app.websocket("/count")
async def count(socket: fastapi.WebSocket):
    await socket.accept()
    number = 0
    while True:
        await socket.receive_text()
        number += 1
        await socket.send_text(str(number))
"""

HTTP_KEPT_ALIVE = """
import http.server, sys
import items

ITEMS = items.make()

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one write: the second would wait for the first one's acknowledgement
    count = 0  # of this connection, which has a handler of its own

    def do_GET(self):
        self.count += 1
        answer = {"/count": lambda: str(self.count), "/state": lambda: items.state(ITEMS)}
        body = answer.get(self.path, lambda: "ok")().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
