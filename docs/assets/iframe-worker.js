// Search runs in a web worker, which browsers refuse to pages that are opened as files (file://). There this script
// replaces `Worker` by a hidden frame, so that the search also works without a server. It loads nothing else.
if (location.protocol === "file:") {
  window.IFrameWorker = class IFrameWorker extends EventTarget {
    constructor(url) {
      super();
      const frame = document.createElement("iframe");
      frame.hidden = true;
      frame.deliver = (data) => this.dispatchEvent(new MessageEvent("message", { data }));
      document.body.append(frame);
      this.inner = frame.contentWindow;
      this.inner.document.open();
      this.inner.document.write("<script>self.postMessage = (data) => frameElement.deliver(data)</" + "script>");
      this.inner.document.close();
      const script = this.inner.document.createElement("script");
      this.ready = new Promise((resolve) => (script.onload = resolve));
      script.src = url;
      this.inner.document.body.append(script);
    }

    postMessage(data) {
      this.ready.then(() => this.inner.dispatchEvent(new MessageEvent("message", { data })));
    }

    terminate() {}
  };
  window.Worker = window.IFrameWorker;
}
